-- Every column of the matrices of one model.
select *
from matrices
semi join chosen_scans($model, null) using (scan_id)
order by stack desc nulls first, layer nulls last, role_order(role), module nulls first, expert, head, tensor;
