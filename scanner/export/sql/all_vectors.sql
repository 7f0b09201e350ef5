-- Every column of the singular triplets of one model.
select *
from vectors
semi join chosen_scans($model, null) using (scan_id)
order by stack desc nulls first, layer nulls last, role_order(role), module nulls first, expert, head, tensor, k;
