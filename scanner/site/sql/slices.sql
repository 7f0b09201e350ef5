-- Number of slices of heads and of products of heads of one model, which a site leaves out.
select count(*)::integer as slices
from matrices
semi join chosen_scans($model, null) using (scan_id)
where head is not null;
