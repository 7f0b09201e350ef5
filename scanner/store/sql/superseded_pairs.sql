-- Pairs of matrices of which a later comparison of the same models, in the same revisions, holds a result too. A pair is known by
-- both tensors, role, head and expert; the comparison that finished last is the newest, pair_id decides a tie.
create table files.superseded_pairs as
select recompared.pair_id, recompared.base_tensor, recompared.role, recompared.head, recompared.expert
from files.recompared
join files.comparing using (pair_id)
qualify
    row_number() over (
        partition by
            comparing.model_pair,
            recompared.base_tensor,
            recompared.tuned_tensor,
            recompared.role,
            recompared.head,
            recompared.expert
        order by comparing.finished_at desc nulls last, pair_id desc
    ) > 1;

-- Comparisons with the number of their pair of models, and whether every result of them is superseded.
create table files.compared as
select
    pair_id,
    base_model,
    tuned_model,
    model_pair,
    finished_at,
    coalesce(matrices > 0 and rows >= matrices, false) as superseded
from files.comparing
left join (select pair_id, count(*) as rows from files.superseded_pairs group by pair_id) using (pair_id);
