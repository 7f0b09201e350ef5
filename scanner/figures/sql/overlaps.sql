-- Overlaps of one run, centred or not, in the order of the singular values within each role.
select role, layer, k, cols, singular_value, region, overlap, match, eigenvalue, peak
from "overlaps"
where
    run_id = $run
    and centred = $centred
    and region != 'null'
    and ($role is null or role = $role)
    and ($layer is null or layer = $layer)
order by role_order(role), role, singular_value, layer, k;
