-- Overlaps of a model, centered or not, by singular value within each role.
select run_id, role, layer, k, cols, singular_value, region, overlap, match, eigenvalue, peak
from chosen_overlaps($model, $run, $role, $centred)
where region != 'null' and ($layer is null or layer = $layer)
order by role_order(role), role, singular_value, layer, k;
