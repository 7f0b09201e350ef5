-- Pairs of matrices that a later comparison of the same models and revisions has a result of, too. The comparison that finished last is
-- the newest; pair_id decides a tie.
create table files.superseded_pairs as
select recompared.pair_id, unnest(pair_key(recompared))
from files.recompared
join files.comparing using (pair_id)
qualify
    row_number() over (
        partition by comparing.model_pair, recompared.tuned_tensor, pair_key(recompared)
        order by comparing.finished_at desc nulls last, pair_id desc
    ) > 1;

-- Comparisons with the number of their pair of models, and whether all of their results are superseded.
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
