-- Newest results of all comparisons of a pair of models (null: of any): the pair that was compared last first, and its matrices by
-- decreasing change.
select
    pairs.pair_id,
    pairs.model_pair,
    compared.base_model,
    compared.tuned_model,
    compared.base_scan_id,
    compared.tuned_scan_id,
    pairs.base_tensor,
    pairs.stack,
    pairs.layer,
    pairs.role,
    pairs.head,
    pairs.expert,
    pairs.module,
    pairs.rows,
    pairs.cols,
    pairs.relative_change
from chosen_pairs($base, $tuned, null) as pairs
join comparisons as compared using (pair_id)
order by
    max(compared.finished_at) over (partition by model_pair) desc nulls last,
    model_pair,
    relative_change desc nulls last,
    layer nulls last,
    role_order(role),
    role,
    base_tensor,
    head,
    expert;
