-- title: Randomness of the singular vectors by depth
-- about: Mean p-value of the Kolmogorov-Smirnov test over all singular vectors of a matrix, by layer and role. Random
--   matrices have mean 0.5; the lower, the more a layer has learned.
-- param: model VARCHAR = NULL | only this model
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- column: model | the model's name
-- column: stack | encoder or decoder where the model has both
-- column: layer | index of the block
-- column: role | what the matrix does in its block
-- column: module | cross_attention, shared experts and the like, where one role stands twice in a block
-- column: matrices | matrices averaged over (more than one with experts or heads)
-- column: u_p | left vectors: mean p-value
-- column: v_p | right vectors: mean p-value
-- column: p | mean of u_p and v_p
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
