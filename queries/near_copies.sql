-- title: Models whose matrices are those of another model
-- about: Matrices at the same place (role, block, shape) in two models of different names are compared by three summaries of their
--   singular values: Frobenius norm, largest singular value and effective rank. They are identical if these agree to nine digits, and
--   almost identical if they agree to tolerance. A pair of models is listed if at least share of the matrices of the first are almost
--   identical. declared says whether the first one names the other as its base, or the reverse; a fine-tune of a few layers
--   is a near copy of its base, and so is a model that was uploaded again.
-- param: night VARCHAR = NULL | models of the releases that were scanned in this night only
-- param: tolerance DOUBLE = 0.001 | largest relative difference of almost identical summaries
-- param: share DOUBLE = 0.5 | smallest share of almost identical matrices that is listed
-- column: model | name of the model
-- column: revision | commit, first 12 characters
-- column: other_model | the model that it resembles
-- column: other_revision | its commit, first 12 characters
-- column: matrices | matrices of the first model
-- column: identical | those that agree with a matrix of the other to nine digits
-- column: near | those that agree to tolerance, the identical ones included
-- column: share | near / matrices
-- column: declared | whether one of them names the other as its base
-- show: model, other_model, matrices, identical, near, share, declared
with places as (
    select
        matrices.scan_id,
        matrices.model,
        left(matrices.revision, 12) as revision,
        matrices.tensor,
        matrices.role,
        coalesce(matrices.stack, '') as stack,
        coalesce(matrices.layer, -1) as layer,
        coalesce(matrices.expert, -1) as expert,
        matrices.rows,
        matrices.cols,
        matrices.frobenius_norm,
        matrices.spectral_norm,
        matrices.effective_rank,
        scans.base_model
    from matrices
    join scans using (scan_id)
    where matrices.head is null and matrices.frobenius_norm > 0 and not starts_with(matrices.model, 'delta:')
),

mine as (
    select *, count(*) over (partition by scan_id) as matrices
    from places
    semi join night_scans($night) using (scan_id)
),

others as (
    select *
    from places
    semi join chosen_scans(null, null) using (scan_id)
),

alike as (
    select
        mine.scan_id,
        mine.model,
        mine.revision,
        mine.matrices,
        mine.tensor,
        mine.role,
        mine.expert,
        others.scan_id as other_scan_id,
        others.model as other_model,
        others.revision as other_revision,
        coalesce(mine.base_model = others.model or others.base_model = mine.model, false) as declared,
        min(
            greatest(
                abs(others.frobenius_norm / mine.frobenius_norm - 1),
                abs(others.spectral_norm / mine.spectral_norm - 1),
                abs(others.effective_rank / mine.effective_rank - 1)
            )
        ) as difference
    from mine
    join others using (role, stack, layer, expert, rows, cols)
    where
        others.model != mine.model
        and abs(others.frobenius_norm / mine.frobenius_norm - 1) <= $tolerance
        and abs(others.spectral_norm / mine.spectral_norm - 1) <= $tolerance
        and abs(others.effective_rank / mine.effective_rank - 1) <= $tolerance
    group by all
)

select
    model,
    revision,
    other_model,
    other_revision,
    matrices::integer as matrices,
    (count(*) filter (where difference <= 1e-9))::integer as identical,
    count(*)::integer as near,
    count(*) / matrices as share,
    declared
from alike
group by scan_id, model, revision, other_scan_id, other_model, other_revision, matrices, declared
having count(*) / matrices >= $share
order by count(*) / matrices desc, identical desc, model, other_model, other_revision;
