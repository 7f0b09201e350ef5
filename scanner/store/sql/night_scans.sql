-- Scans of the releases that were scanned in one night, or (null) the newest revision of every model except differences.
-- `semi join night_scans($night) using (scan_id)`.
create macro night_scans(wanted_night) as table
select scan_id
from chosen_scans(null, null)
where wanted_night is null
union all
select distinct scan_id
from releases
where night_id = wanted_night and scan_id is not null;
