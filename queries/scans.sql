-- title: Committed scans, the latest first
-- about: One line per scan. A model has several when other roles, layers, revisions or methods were scanned; the other
--   queries use the newest result of every matrix, of the newest revision.
-- param: model VARCHAR = NULL | only this model
-- param: revision VARCHAR = NULL | only revisions that begin with this
-- column: model | the model's name
-- column: revision | commit or content hash, the first 12 characters
-- column: format | how the checkpoint is stored
-- column: parameters | number of the checkpoint's parameters
-- column: dtype | type in which most of them are stored
-- column: matrices | matrices and slices that were analysed
-- column: vectors | singular triplets
-- column: failed | tensors that could not be analysed (table failures says why)
-- column: skipped | tensors that were left out (scans.skipped_tensors says why)
-- column: seconds | how long the scan took
-- column: finished_at | when it was finished, UTC
-- column: scan_id | identity of what was scanned and how
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
