-- Whether a scan with this method has vectors: all but those of `--values-only`.
create macro has_vectors(method) as
coalesce(case when json_valid(method) then json_extract_string(method, '$.values_only') end, 'false') in ('false', '0');

-- Matrices that another scan of the same model and revision has a better result of. A result with vectors is better than one of
-- `--values-only`; of two of a kind, that of the scan that finished last; scan_id decides a tie.
create table files.superseded as
select rescanned.scan_id, unnest(matrix_key(rescanned))
from files.rescanned
join scans using (scan_id)
qualify
    row_number() over (
        partition by rescanned.model, rescanned.revision, matrix_key(rescanned)
        order by has_vectors(scans.method) desc, scans.finished_at desc nulls last, scan_id desc
    ) > 1;

create view files.superseded_counts as
select scan_id, count(*)
from files.superseded
group by scan_id;
