-- Matrices of which a later scan holds a result too. A matrix is known by model, revision, tensor, role (of the parts of
-- a fused tensor), head and expert;
-- the scan that finished last is the newest, scan_id decides a tie.
create table files.superseded as
select rescanned.scan_id, rescanned.tensor, rescanned.role, rescanned.head, rescanned.expert
from files.rescanned
join scans using (scan_id)
qualify
    row_number() over (
        partition by
            rescanned.model,
            rescanned.revision,
            rescanned.tensor,
            rescanned.role,
            rescanned.head,
            rescanned.expert
        order by scans.finished_at desc nulls last, scan_id desc
    ) > 1;

create view files.superseded_counts as
select scan_id, count(*)
from files.superseded
group by scan_id;
