-- title: How much fine-tuning changed each matrix
-- about: One line per pair of matrices, in the order of the model. The relative change is |W_tuned - W_base| / |W_base|
--   (Frobenius norms). Intruders are those among the ten largest tuned left vectors that overlap with no base vector by
--   0.5 or more. The columns delta_ are about the difference W_tuned - W_base itself: a random one has p 0.5 and no
--   outliers.
-- param: base VARCHAR = NULL | only pairs with this base model
-- param: tuned VARCHAR = NULL | only pairs with this tuned model
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- column: base_model | the base model's name
-- column: tuned_model | the tuned model's name
-- column: stack | encoder or decoder where the model has both
-- column: layer | index of the block
-- column: role | what the matrix does in its block
-- column: head | index of the head, with heads
-- column: expert | index of the expert where there are several
-- column: tensor | the tuned tensor's name
-- column: relative_change | Frobenius norm of the change over that of the base matrix
-- column: cosine | of both matrices as vectors
-- column: identical | whether both are equal to the last bit
-- column: left | singular values below the bulk, before -> after
-- column: right | singular values above the bulk, before -> after
-- column: intruders | intruder dimensions among the ten largest tuned left vectors
-- column: delta_effective_rank | effective rank of the change
-- column: delta_right | singular values of the change above its bulk
-- column: delta_u_p | left vectors of the change: mean p-value
-- column: delta_v_p | right vectors of the change: mean p-value
select
    base_model,
    tuned_model,
    stack,
    layer,
    role,
    head,
    expert,
    tuned_tensor as tensor,
    relative_change,
    cosine,
    identical,
    outliers_left_base || ' -> ' || outliers_left_tuned as "left",
    outliers_right_base || ' -> ' || outliers_right_tuned as "right",
    intruders,
    delta_effective_rank,
    delta_outliers_right as delta_right,
    delta_u_p_mean as delta_u_p,
    delta_v_p_mean as delta_v_p
from pairs
semi join chosen_comparisons($base, $tuned) using (pair_id)
where ($role is null or role = $role) and (head is not null) = $heads
order by
    base_model, tuned_model, stack desc nulls first, layer nulls last, role_order(role), role, head, expert, tensor;
