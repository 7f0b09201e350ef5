-- title: Where in the spectrum fine-tuning happened
-- about: One line per role and decile of the spectrum, decile 1 the smallest singular values. u_turned and v_turned are
--   mean 1 - overlap of each tuned vector with the base vector that is most like it: 0 = the vector is still there.
--   Neighbours mix easily where singular values lie close together, in the bulk, so see u_left and v_left too: the part
--   of the decile's subspace that has left that of the base model's decile, blind to mixing inside.
-- param: base VARCHAR = NULL | only pairs with this pretrained model
-- param: tuned VARCHAR = NULL | only pairs with this fine-tuned model
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- param: pair_id VARCHAR = NULL | only this comparison, whole, even where a later one has newer results
-- column: base_model | the pretrained model
-- column: tuned_model | the fine-tuned model
-- column: role | what the matrix does in its block
-- column: decile | 1 = smallest singular values, 10 = largest
-- column: matrices | matrices averaged over
-- column: u_turned | left vectors: mean of 1 - overlap
-- column: v_turned | right vectors: the same
-- column: u_left | left vectors: mean of 1 - overlap of the deciles' subspaces; empty where they were not compared
-- column: v_left | right vectors: the same
-- column: singular_value_change | mean of tuned / base - 1; a base value of zero is left out
-- column: singular_value_moved | mean of |tuned / base - 1|
-- column: u_p_base | left vectors before: mean p-value
-- column: u_p_tuned | left vectors after: mean p-value
-- column: v_p_base | right vectors before: mean p-value
-- column: v_p_tuned | right vectors after: mean p-value
-- column: p_change | mean of both sides, after minus before; negative = less random
-- column: base_revision | the pretrained model's revision, the first 12 characters
-- column: tuned_revision | the fine-tuned model's revision, the first 12 characters
with per_decile as (
    select
        model_pair,
        role,
        10 - (10 * k) // least(rows, cols) as decile,
        1 - avg(u_overlap) as u_turned,
        1 - avg(v_overlap) as v_turned,
        avg(singular_value_tuned / nullif(singular_value_base, 0) - 1) as singular_value_change,
        avg(abs(singular_value_tuned / nullif(singular_value_base, 0) - 1)) as singular_value_moved,
        avg(u_p_base) as u_p_base,
        avg(u_p_tuned) as u_p_tuned,
        avg(v_p_base) as v_p_base,
        avg(v_p_tuned) as v_p_tuned
    from chosen_pair_vectors($base, $tuned, $pair_id)
    where ($role is null or role = $role) and (head is not null) = $heads
    group by all
),

counts as (
    select model_pair, role, count(*)::integer as matrices
    from chosen_pair_vectors($base, $tuned, $pair_id)
    where k = 0 and ($role is null or role = $role) and (head is not null) = $heads
    group by model_pair, role
),

subspaces as (
    select
        model_pair,
        role,
        decile,
        1 - avg(overlap) filter (where side = 'u') as u_left,
        1 - avg(overlap) filter (where side = 'v') as v_left
    from chosen_pair_subspaces($base, $tuned, $pair_id)
    where (head is not null) = $heads
    group by model_pair, role, decile
)

select
    base_model,
    tuned_model,
    per_decile.role,
    per_decile.decile::integer as decile,
    counts.matrices,
    u_turned,
    v_turned,
    u_left,
    v_left,
    singular_value_change,
    singular_value_moved,
    u_p_base,
    u_p_tuned,
    v_p_base,
    v_p_tuned,
    (u_p_tuned + v_p_tuned - u_p_base - v_p_base) / 2 as p_change,
    base_revision,
    tuned_revision
from per_decile
join files.model_pairs using (model_pair)
left join counts using (model_pair, role)
left join subspaces using (model_pair, role, decile)
order by base_model, tuned_model, model_pair, role_order(per_decile.role), per_decile.role, per_decile.decile;
