-- Singular triplets of one pair of matrices, largest singular value first.
select k, singular_value_base, singular_value_tuned, u_p_base, u_p_tuned, v_p_base, v_p_tuned
from pair_vectors
where
    pair_id = $pair_id
    and base_tensor = $tensor
    and role = $role
    and head is not distinct from $head
    and expert is not distinct from $expert
order by k;
