-- title: Matrices of a pair of models that were not compared, and why
-- about: Matrices that only one of the models has, whose shapes differ, or whose comparison failed. A failure is left out if a
--   later comparison has a result for the matrix.
-- param: base MODEL = NULL | pairs with this pretrained model only
-- param: tuned MODEL = NULL | pairs with this fine-tuned model only
-- param: pair_id VARCHAR = NULL | this comparison only, even if a later comparison has newer results
-- column: base_model | the pretrained model
-- column: tuned_model | the fine-tuned model
-- column: side | base or tuned: the model with the matrix; both if each model has one
-- column: reason | no counterpart, another shape, or failed
-- column: tensor | name of the weight; if both models have it, in the tuned checkpoint
-- column: role | role of the matrix, if the tensor contains several
-- column: head | index of the head
-- column: expert | index of the expert
-- column: detail | both shapes, or the error
-- column: base_revision | revision of the pretrained model, first 12 characters
-- column: tuned_revision | revision of the fine-tuned model, first 12 characters
-- show: base_model, tuned_model, side, reason, tensor, role, head, expert, detail
with reasons as (
    select
        pair_id,
        model_pair,
        base_model,
        tuned_model,
        unnest(map_entries(json_transform(unmatched_tensors, '"MAP(VARCHAR, VARCHAR[])"'))) as entry
    from comparisons
    join chosen_comparisons($base, $tuned, $pair_id) using (pair_id)
    where json_valid(unmatched_tensors)
),

-- An entry is `tensor` or `tensor (role, head 1, expert 2)`, followed by `(3x4 became 5x4)`, by `: error`, or by nothing.
lines as (
    select
        pair_id,
        model_pair,
        case
            when starts_with(entry.key, 'only in base (') or entry.key = 'only in ' || base_model then 'base'
            when starts_with(entry.key, 'only in tuned (') or entry.key = 'only in ' || tuned_model then 'tuned'
            else 'both'
        end as side,
        case
            when side != 'both' then 'no counterpart'
            when entry.key = 'of another shape' then 'another shape'
            else entry.key
        end as reason,
        regexp_extract(
            unnest(entry.value),
            '^(.+?)(?: [(]((?:[a-z_]+|head [0-9]+|expert [0-9]+)(?:, (?:head|expert) [0-9]+)*)[)])?(?: [(]([0-9]+x[0-9]+ became [0-9]+x[0-9]+)[)])?(?:: (.*))?$',
            ['tensor', 'which', 'shapes', 'error']
        ) as words
    from reasons
),

found as (
    select
        pair_id,
        model_pair,
        side,
        reason,
        words.tensor as tensor,
        nullif(regexp_extract(words.which, '^([a-z_]+)(?:,|$)', 1), '') as role,
        try_cast(regexp_extract(words.which, 'head ([0-9]+)', 1) as integer) as head,
        try_cast(regexp_extract(words.which, 'expert ([0-9]+)', 1) as integer) as expert,
        coalesce(nullif(words.shapes, ''), nullif(words.error, '')) as detail
    from lines
)

select distinct
    base_model,
    tuned_model,
    side,
    reason,
    tensor,
    role,
    head,
    expert,
    detail,
    base_revision,
    tuned_revision
from found
join files.model_pairs using (model_pair)
where
    reason != 'failed'
    or not exists (
        from chosen_pairs($base, $tuned, $pair_id) as later
        where
            later.model_pair = found.model_pair
            and later.pair_id != found.pair_id
            and later.tuned_tensor = found.tensor
            and later.role = coalesce(found.role, later.role)
            and later.head is not distinct from found.head
            and later.expert is not distinct from found.expert
    )
order by base_model, tuned_model, base_revision, tuned_revision, reason, side, tensor, role, head, expert;
