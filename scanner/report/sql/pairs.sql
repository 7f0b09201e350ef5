-- Newest result of every whole matrix of one pair of models (null: of all pairs), by decreasing change.
select
    model_pair,
    stack,
    layer,
    role,
    module,
    expert,
    base_tensor as tensor,
    rows,
    cols,
    relative_change,
    cosine,
    identical,
    outliers_left_base,
    outliers_left_tuned,
    outliers_right_base,
    outliers_right_tuned,
    intruders,
    delta_outliers_right,
    delta_stable_rank
from chosen_pairs($base, $tuned, null)
where
    ($model_pair is null or model_pair = $model_pair)
    and head is null
order by relative_change desc nulls last, layer nulls last, role_order(role), role, tensor, expert;
