-- The scans that a report of one model is about: those of its newest revision, the newest first.
select *
from scans
semi join chosen_scans($model, null) using (scan_id)
order by finished_at desc nulls last, scan_id;
