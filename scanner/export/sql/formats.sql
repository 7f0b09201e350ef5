-- Formats of the files of one model.
select distinct format
from scans
semi join chosen_scans($model, null) using (scan_id)
where format is not null;
