-- Committed scans, kept in memory, because every query starts from them. In `counts`, `rescanned` says that the same revision of the
-- same model has other scans, so that results may be superseded.
create table scans as
from files.scans;

create view files.counts as
select scan_id, matrices, vectors, failed, count(*) over (partition by model, revision) > 1 as rescanned
from scans
order by scan_id;

-- Scans of one model, or (null) of all models except differences, each in one revision: the newest that begins with `wanted_revision`.
-- `semi join chosen_scans($model, $revision) using (scan_id)` lets DuckDB skip the row groups of other models.
create macro chosen_scans(wanted_model, wanted_revision) as table
select scan_id
from scans
where
    case when wanted_model is null then not starts_with(model, 'delta:') else model = wanted_model end
    and (wanted_revision is null or starts_with(revision, wanted_revision))
qualify
    revision is not distinct from first_value(revision) over (
        partition by model
        order by (revision = wanted_revision) desc nulls last, finished_at desc nulls last, scan_id desc
    );
