-- The matrices of the newest comparison of a pair of models (null: of any), those that changed most first.
select
    pairs.pair_id,
    comparisons.base_model,
    comparisons.tuned_model,
    pairs.base_tensor,
    pairs.stack,
    pairs.layer,
    pairs.role,
    pairs.head,
    pairs.expert,
    pairs.module,
    pairs.rows,
    pairs.cols,
    pairs.relative_change,
    pairs.identical
from pairs
join comparisons using (pair_id)
semi join chosen_comparisons($base, $tuned) using (pair_id)
order by
    comparisons.finished_at desc nulls last,
    pair_id,
    relative_change desc nulls last,
    layer nulls last,
    role_order(role),
    role,
    base_tensor,
    head,
    expert;
