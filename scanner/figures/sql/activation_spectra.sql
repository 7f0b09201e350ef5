-- Eigenvalues of a model's activations, centred or not: geometric mean over the matrices of a role.
select role, index + 1 as number, exp(avg(ln(eigenvalue))) as eigenvalue
from activation_spectra
semi join chosen_activations($model, $run) using (run_id, tensor, role)
where
    centred = $centred
    and eigenvalue > 0
    and ($role is null or role = $role)
    and ($layer is null or layer = $layer)
group by role, index
order by role_order(role), role, index;
