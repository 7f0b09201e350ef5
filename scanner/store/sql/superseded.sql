-- Matrices that a later scan of the same model and revision has a result of, too. The scan that finished last is the newest; scan_id
-- decides a tie.
create table files.superseded as
select rescanned.scan_id, unnest(matrix_key(rescanned))
from files.rescanned
join scans using (scan_id)
qualify
    row_number() over (
        partition by rescanned.model, rescanned.revision, matrix_key(rescanned)
        order by scans.finished_at desc nulls last, scan_id desc
    ) > 1;

create view files.superseded_counts as
select scan_id, count(*)
from files.superseded
group by scan_id;
