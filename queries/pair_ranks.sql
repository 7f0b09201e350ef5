-- title: Singular values and p-values before and after fine-tuning, rank by rank
-- about: Singular values and p-values before (base) and after (tuned) fine-tuning, averaged rank by rank over the matrices of
--   one role and shape. Random vectors have a mean p-value of 0.5. Ranks without a p-value (numerically zero singular
--   values) are left out of the mean. `pair_shift` sums it up.
-- chart: pair_spectra
-- param: base MODEL = NULL | pairs with this pretrained model only
-- param: tuned MODEL = NULL | pairs with this fine-tuned model only
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: pair_id VARCHAR = NULL | this comparison only, with all of its results, even if a later comparison has newer ones
-- column: base_model | the pretrained model
-- column: tuned_model | the fine-tuned model
-- column: role | role of the matrix in its block
-- column: rows | output features
-- column: cols | input features
-- column: k | rank of the singular triplet, 0 = largest singular value
-- column: matrices | number of matrices in the average
-- column: singular_value_base | mean singular value before
-- column: singular_value_tuned | mean singular value after
-- column: singular_value_change | tuned / base - 1, mean over the matrices; a base value of zero is left out
-- column: u_p_base | left singular vectors before: mean p-value
-- column: u_p_tuned | left singular vectors after: mean p-value
-- column: v_p_base | right singular vectors before: mean p-value
-- column: v_p_tuned | right singular vectors after: mean p-value
-- column: p_change | mean of both sides, after minus before; negative = less random
-- column: base_revision | revision of the pretrained model, first 12 characters
-- column: tuned_revision | revision of the fine-tuned model, first 12 characters
-- show: base_model, tuned_model, matrices, role, shape = rows x cols, k, singular_value_base, singular_value_tuned,
--   singular_value_change, p_change
with shifts as (
    select
        model_pair,
        role,
        rows,
        cols,
        k,
        count(*)::integer as matrices,
        avg(singular_value_base) as singular_value_base,
        avg(singular_value_tuned) as singular_value_tuned,
        avg(singular_value_tuned / nullif(singular_value_base, 0) - 1) as singular_value_change,
        avg(u_p_base) as u_p_base,
        avg(u_p_tuned) as u_p_tuned,
        avg(v_p_base) as v_p_base,
        avg(v_p_tuned) as v_p_tuned
    from chosen_pair_vectors($base, $tuned, $pair_id)
    where ($role is null or role = $role) and (head is not null) = $heads
    group by model_pair, role, rows, cols, k
)

select
    base_model,
    tuned_model,
    shifts.* exclude (model_pair),
    (u_p_tuned + v_p_tuned - u_p_base - v_p_base) / 2 as p_change,
    base_revision,
    tuned_revision
from shifts
join files.model_pairs using (model_pair)
order by base_model, tuned_model, model_pair, role_order(role), role, rows, cols, k;
