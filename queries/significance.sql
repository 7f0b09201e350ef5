-- title: Significant matrices and singular vectors, by role
-- about: How many matrices and singular vectors differ from random ones by more than chance, under two hypotheses: independent entries
--   of one variance (i.i.d.), and independent entries with the row and column variances of the matrix (the scale null). What the
--   first rejects differs from i.i.d.; only what the second rejects, too, is direction.
--   A matrix counts if its omnibus p-value (Fisher's test of all p-values of its left or right vectors) is at most level after
--   correction for all matrices and both sides of the model (Bonferroni): then the probability of a single false one is at most level.
--   A vector counts if its q-value (Benjamini and Hochberg, within its matrix and side) is at most level: the expected share of
--   random vectors among these is at most level. Both families are fixed by the model: a selected role does not change a number.
--   effect is the size of the deviation, D (sqrt(n) + 0.12 + 0.11 / sqrt(n)) minus its mean for random vectors (0 +- 0.25), which does
--   not saturate as p-values do. Matrices without a scale null are left out of the columns whose names end with _scale, and scans of
--   versions that did not store these columns are left out altogether.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: layers BOOLEAN = FALSE | one row per layer; if false, one row for all layers of a role
-- param: level DOUBLE = 0.05 | largest corrected p-value and largest q-value that count
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block; NULL outside blocks, and if all layers are in one row
-- column: role | role of the matrix in its block
-- column: module | submodule such as cross_attention or shared experts, if a role occurs twice in a block
-- column: side | v: right singular vectors (input side), u: left singular vectors (output side)
-- column: matrices | number of matrices with a test
-- column: matrices_iid | matrices that differ from i.i.d.
-- column: matrices_scale | matrices that differ from their scale null; NULL if none has one
-- column: without_scale | matrices that have no scale null, or none that could be fitted (scale_failure of table matrices)
-- column: vectors | number of singular vectors with a test
-- column: vectors_iid | vectors that differ from i.i.d.
-- column: vectors_scale | vectors that differ from their scale null; NULL if none has one
-- column: effect | mean size of the deviation from i.i.d.
-- column: effect_scale | mean size of the deviation from the scale null; NULL if none has one
-- column: tests | number of matrices and sides of the model, for which p-values are corrected
-- show: model, stack, role, layer, module, side, matrices, matrices_iid, matrices_scale, vectors, vectors_iid, vectors_scale,
--   effect_scale
with tested as (
    select
        *,
        count(u_p_omnibus) over (partition by model) + count(v_p_omnibus) over (partition by model) as tests
    from matrices
    semi join chosen_scans($model, $revision) using (scan_id)
    where (head is not null) = $heads
),

of_matrices as (
    select
        model,
        stack,
        case when $layers then layer end as layer,
        role,
        module,
        any_value(tests)::integer as tests,
        count(u_p_omnibus) as u_matrices,
        count(v_p_omnibus) as v_matrices,
        count(*) filter (where u_p_omnibus * tests <= $level) as u_iid,
        count(*) filter (where v_p_omnibus * tests <= $level) as v_iid,
        count(*) filter (where u_p_scale_omnibus * tests <= $level) as u_scale,
        count(*) filter (where v_p_scale_omnibus * tests <= $level) as v_scale,
        count(u_p_scale_omnibus) as u_with_scale,
        count(v_p_scale_omnibus) as v_with_scale
    from tested
    where $role is null or role = $role
    group by all
),

of_vectors as (
    select
        model,
        stack,
        case when $layers then layer end as layer,
        role,
        module,
        count(u_q) as u_vectors,
        count(v_q) as v_vectors,
        count(*) filter (where u_q <= $level) as u_iid,
        count(*) filter (where v_q <= $level) as v_iid,
        case when count(u_q_scale) > 0 then count(*) filter (where u_q_scale <= $level) end as u_scale,
        case when count(v_q_scale) > 0 then count(*) filter (where v_q_scale <= $level) end as v_scale,
        avg(u_effect) as u_effect,
        avg(v_effect) as v_effect,
        avg(u_effect_scale) as u_effect_scale,
        avg(v_effect_scale) as v_effect_scale
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where (head is not null) = $heads and ($role is null or role = $role)
    group by all
),

sides as (
    select
        one.model,
        one.stack,
        one.layer,
        one.role,
        one.module,
        side,
        case side when 'u' then one.u_matrices else one.v_matrices end as matrices,
        case side when 'u' then one.u_iid else one.v_iid end as matrices_iid,
        case side
            when 'u' then case when one.u_with_scale > 0 then one.u_scale end
            else case when one.v_with_scale > 0 then one.v_scale end
        end as matrices_scale,
        case side when 'u' then one.u_matrices - one.u_with_scale else one.v_matrices - one.v_with_scale end as without_scale,
        case side when 'u' then two.u_vectors else two.v_vectors end as vectors,
        case side when 'u' then two.u_iid else two.v_iid end as vectors_iid,
        case side when 'u' then two.u_scale else two.v_scale end as vectors_scale,
        case side when 'u' then two.u_effect else two.v_effect end as effect,
        case side when 'u' then two.u_effect_scale else two.v_effect_scale end as effect_scale,
        one.tests
    from of_matrices as one
    join of_vectors as two
        on one.model = two.model
        and one.stack is not distinct from two.stack
        and one.layer is not distinct from two.layer
        and one.role = two.role
        and one.module is not distinct from two.module
    cross join (values ('v'), ('u')) as both_sides (side)
)

select
    model,
    stack,
    layer,
    role,
    module,
    side,
    matrices::integer as matrices,
    matrices_iid::integer as matrices_iid,
    matrices_scale::integer as matrices_scale,
    without_scale::integer as without_scale,
    vectors::integer as vectors,
    vectors_iid::integer as vectors_iid,
    vectors_scale::integer as vectors_scale,
    effect,
    effect_scale,
    tests
from sides
where sides.matrices > 0
order by model, stack desc nulls first, layer nulls last, role_order(role), role, module nulls first, side desc;
