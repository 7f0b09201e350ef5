-- Committed scans, kept in memory, because every query starts from them. In `counts`, `rescanned` says that the same revision of the
-- same model has other scans, so that results may be superseded.
create table scans as
from files.scans;

create view files.counts as
select scan_id, matrices, vectors, failed, count(*) over (partition by model, revision) > 1 as rescanned
from scans
order by scan_id;
