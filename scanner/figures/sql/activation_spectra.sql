-- Eigenvalues of the activations of a model, centered or not: geometric mean over the matrices of a role, where all are positive.
select role, index + 1 as number, exp(avg(ln(nullif(eigenvalue, 0)))) as eigenvalue
from activation_spectra
semi join chosen_activations($model, $run) using (run_id, tensor, role)
where
    centred = $centred
    and ($role is null or role = $role)
    and ($layer is null or layer = $layer)
group by role, index
having min(eigenvalue) > 0
order by role_order(role), role, index;
