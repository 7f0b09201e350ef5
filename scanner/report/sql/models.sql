-- Sources of all scanned models, newest scan first.
select model, revision, source
from scans
order by finished_at desc nulls last, scan_id;
