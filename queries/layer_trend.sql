-- title: Randomness of the singular vectors by depth
-- about: Mean p-value of the Kolmogorov-Smirnov test over all singular vectors of a matrix, by layer and role. Random matrices
--   have a mean of 0.5; lower values mean that a layer differs more from i.i.d.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block
-- column: role | role of the matrix in its block
-- column: module | submodule such as cross_attention or shared experts, if a role occurs twice in a block
-- column: matrices | number of matrices in the average (more than one with experts or heads)
-- column: u_p | left singular vectors: mean p-value
-- column: v_p | right singular vectors: mean p-value
-- column: p | mean of u_p and v_p
-- show: model, stack, layer, role, module, matrices, u_p, v_p, p
-- total of one model: matrices
select
    model,
    stack,
    layer,
    role,
    module,
    count(*)::integer as matrices,
    avg(u_p_mean) as u_p,
    avg(v_p_mean) as v_p,
    (avg(u_p_mean) + avg(v_p_mean)) / 2 as p
from matrices
semi join chosen_scans($model, $revision) using (scan_id)
where layer is not null and ($role is null or role = $role) and (head is not null) = $heads
group by model, stack, layer, role, module
order by model, stack desc nulls first, layer, role_order(role), role, module nulls first;
