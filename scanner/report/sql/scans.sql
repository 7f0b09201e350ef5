-- Scans of the newest revision of one model (null: of all models, except differences), newest first.
select *
from scans
semi join chosen_scans($model, null) using (scan_id)
order by finished_at desc nulls last, scan_id;
