-- title: Where in the spectrum fine-tuning changed a model
-- about: One row per role and decile of the spectrum; decile 1 has the smallest singular values. u_turned and v_turned are the
--   mean of 1 - overlap of each tuned vector with the most similar base vector: 0 = the vector is unchanged. Adjacent
--   vectors mix easily where singular values are close together, as in the bulk. u_subspace_turned and v_subspace_turned do not depend on such
--   mixing: they are the part of the subspace of a decile that has left that of the same decile of the base model.
-- param: base MODEL = NULL | pairs with this pretrained model only
-- param: tuned MODEL = NULL | pairs with this fine-tuned model only
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: pair_id VARCHAR = NULL | this comparison only, with all of its results, even if a later comparison has newer ones
-- column: base_model | the pretrained model
-- column: tuned_model | the fine-tuned model
-- column: role | role of the matrix in its block
-- column: decile | 1 = smallest singular values, 10 = largest
-- column: matrices | number of matrices in the average
-- column: u_turned | left singular vectors: mean of 1 - overlap
-- column: v_turned | right singular vectors: mean of 1 - overlap
-- column: u_subspace_turned | left singular vectors: mean of 1 - overlap of the subspaces of the deciles; NULL if they were not compared
-- column: v_subspace_turned | right singular vectors: mean of 1 - overlap of the subspaces; NULL if they were not compared
-- column: singular_value_change | mean of tuned / base - 1; a base value of zero is left out
-- column: singular_value_moved | mean of |tuned / base - 1|
-- column: u_p_base | left singular vectors before: mean p-value
-- column: u_p_tuned | left singular vectors after: mean p-value
-- column: v_p_base | right singular vectors before: mean p-value
-- column: v_p_tuned | right singular vectors after: mean p-value
-- column: p_change | mean of both sides, after minus before; negative = less random
-- column: base_revision | revision of the pretrained model, first 12 characters
-- column: tuned_revision | revision of the fine-tuned model, first 12 characters
-- show: base_model, tuned_model, matrices, role, decile, u_turned, v_turned, u_subspace_turned, v_subspace_turned,
--   singular_value_change, p_change
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
        1 - avg(overlap) filter (where side = 'u') as u_subspace_turned,
        1 - avg(overlap) filter (where side = 'v') as v_subspace_turned
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
    u_subspace_turned,
    v_subspace_turned,
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
