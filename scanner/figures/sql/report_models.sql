-- Where every model that is scanned was found, the newest scan first.
select model, revision, source
from scans
order by finished_at desc nulls last, scan_id;
