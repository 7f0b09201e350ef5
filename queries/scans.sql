-- title: Committed scans, latest first
-- about: One row per scan. A model has several scans if different roles, layers, revisions or methods were scanned; the other
--   queries use the newest result of every matrix, of the newest revision.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | revisions that begin with this only
-- column: model | name of the model
-- column: revision | commit or content hash, first 12 characters
-- column: format | format of the checkpoint
-- column: parameters | number of parameters of the checkpoint
-- column: dtype | data type of most parameters
-- column: matrices | number of analyzed matrices and slices
-- column: vectors | number of singular triplets
-- column: failed | number of tensors that could not be analyzed (reasons are in table failures)
-- column: skipped | number of tensors that were left out (reasons are in scans.skipped_tensors)
-- column: seconds | duration of the scan
-- column: finished_at [UTC] | when it finished
-- column: scan_id | identity of what was scanned and how
-- show: model, revision, matrices, failed, skipped, finished_at
-- total: matrices, failed, skipped
select
    model,
    left(revision, 12) as revision,
    format,
    parameters,
    dtype,
    matrices,
    vectors,
    failed,
    skipped,
    seconds,
    finished_at,
    scan_id
from scans
where
    ($model is null or model = $model)
    and ($revision is null or starts_with(revision, $revision))
order by finished_at desc nulls last, scan_id;
