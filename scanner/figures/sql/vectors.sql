-- Singular triplets of one matrix, largest singular value first.
select k, singular_value, region, u_ks, u_p, u_p_local, v_ks, v_p, v_p_local, scale_density
from vectors
where
    scan_id = $scan_id
    and tensor = $tensor
    and role = $role
    and head is not distinct from $head
    and expert is not distinct from $expert
order by k;
