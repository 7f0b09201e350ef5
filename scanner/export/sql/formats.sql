-- Formats of the files of one model, NULL if it is not known; no row if the model was not scanned.
select distinct format
from scans
semi join chosen_scans($model, null) using (scan_id);
