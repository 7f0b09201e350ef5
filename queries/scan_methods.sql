-- title: Scans, with the version of the method that computed them
-- about: A scan of an earlier method is brought to the current one by `rmtscan scan --upgrade`; its results stay. The newest
--   scan comes first.
-- param: model MODEL = NULL | this model only
-- column: scan_id | identity of what was scanned and how
-- column: model | name of the model
-- column: base_model | model that it was made from, if the checkpoint says so
-- column: source | path or URL of the checkpoint
-- column: identity | hash of the content
-- column: parameters | stored floating-point entries
-- column: bytes | stored size of the analyzed matrices, bytes; NULL in stores of earlier versions
-- column: method_version | version of the method
-- column: scanner_version | version of rmtscan
-- column: method | parameters that the id is made of (JSON)
-- column: finished_at [UTC] | when it finished
-- show: model, method_version, scanner_version, finished_at, scan_id
with sizes as (
    select scan_id, sum(bytes_read)::bigint as bytes
    from all_matrices
    group by scan_id
)

select
    scans.scan_id,
    scans.model,
    scans.base_model,
    scans.source,
    scans.identity,
    scans.parameters,
    sizes.bytes,
    try_cast(json_extract_string(scans.method, '$.version') as integer) as method_version,
    scans.scanner_version,
    scans.method,
    scans.finished_at
from scans
left join sizes using (scan_id)
where $model is null or scans.model = $model
order by scans.finished_at desc nulls last, scans.scan_id;
