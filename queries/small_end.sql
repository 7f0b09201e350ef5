-- title: Roles and layers that differ from i.i.d. at the small end of the spectrum
-- about: Mean p-value of the singular vectors of decile 1, the smallest tenth of the singular values of each matrix. Random
--   vectors have a mean of 0.5; a small p differs from i.i.d. The most significant row of a model comes first.
--   z = (p - 0.5) / standard_error. Independent uniform p-values have a standard deviation of sqrt(1 / 12), so
--   standard_error is sqrt(1 / 12 / vectors). control_p, the same for random matrices of that shape, checks the method; it is
--   a draw by itself and no part of z. p_value is the two-sided p-value of a normal z, with a relative error below 2e-7.
--   family_p_value is corrected (Bonferroni) for the number of rows of the model, of all roles even if one is selected, so that
--   family_p_value < 0.01 is significant for any selected row. The columns with _scale are the same test of the p-values under the
--   scale null (row and column variances of the matrix): if it rejects, too, the deviation is direction, and otherwise unequal
--   rows and columns explain it. They are NULL if a scan of the row has no scale null.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: layers BOOLEAN = TRUE | one row per layer; if false, one row for all layers of a role
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block; NULL outside blocks, and if all layers are in one row
-- column: role | role of the matrix in its block
-- column: module | submodule such as cross_attention or shared experts, if a role occurs twice in a block
-- column: rows | output features
-- column: cols | input features
-- column: side | v: right singular vectors (input side), u: left singular vectors (output side)
-- column: matrices | number of matrices
-- column: vectors | number of singular vectors with a p-value in decile 1
-- column: p | mean p-value of these vectors
-- column: control_p | mean p-value of decile 1 of the random controls of that shape
-- column: standard_error | standard error of p for random vectors
-- column: z | difference from 0.5 in standard errors; negative = differs from i.i.d.
-- column: p_value | probability of a deviation of this size, of either sign, for random matrices
-- column: family_p_value | the same for the largest deviation of all rows of the model, whatever role is selected
-- column: p_scale | mean p-value of these vectors under the scale null
-- column: z_scale | its difference from 0.5 in standard errors
-- column: family_p_value_scale | family_p_value of p_scale
-- show: model, stack, role, layer, module, side, vectors, p, z, family_p_value, p_scale, z_scale, family_p_value_scale
with control as (
    select
        rows,
        cols,
        avg(u_p) as u_p,
        avg(v_p) as v_p
    from controls
    where (10 * k) // least(rows, cols) = 9
    group by rows, cols
),

measured as (
    select
        model,
        stack,
        case when $layers then layer end as layer,
        role,
        module,
        rows,
        cols,
        -- Every matrix has exactly one last triplet.
        count(*) filter (where k = least(rows, cols) - 1) as matrices,
        avg(u_p) as u_p,
        count(u_p) as u_vectors,
        avg(v_p) as v_p,
        count(v_p) as v_vectors,
        -- Of all vectors, or not at all: with a part of them, both tests would be of different vectors.
        case when count(u_p_scale) = count(u_p) then avg(u_p_scale) end as u_p_scale,
        case when count(v_p_scale) = count(v_p) then avg(v_p_scale) end as v_p_scale
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where
        (10 * k) // least(rows, cols) = 9
        and (head is not null) = $heads and role not in ('qk', 'ov')
    group by all
),

sides as (
    select
        measured.model,
        measured.stack,
        measured.layer,
        measured.role,
        measured.module,
        rows,
        cols,
        side,
        measured.matrices,
        case side when 'u' then measured.u_vectors else measured.v_vectors end as vectors,
        case side when 'u' then measured.u_p else measured.v_p end as p,
        case side when 'u' then control.u_p else control.v_p end as control_p,
        case side when 'u' then measured.u_p_scale else measured.v_p_scale end as p_scale
    from measured
    cross join (values ('v'), ('u')) as both_sides (side)
    left join control using (rows, cols)
),

compared as (
    select
        *,
        sqrt(1 / 12 / nullif(vectors, 0)) as standard_error,
        (p - 0.5) / standard_error as z,
        (p_scale - 0.5) / standard_error as z_scale,
        normal_outside(z) as p_value,
        normal_outside(z_scale) as p_value_scale,
        count(z) over (partition by model) as tests
    from sides
)

select
    model,
    stack,
    layer,
    role,
    module,
    rows,
    cols,
    side,
    matrices::integer as matrices,
    vectors::integer as vectors,
    p,
    control_p,
    standard_error,
    z,
    -- least(1, null) is 1, so null needs its own case.
    case when compared.z is not null then least(1, compared.p_value) end as p_value,
    case when compared.z is not null then least(1, compared.p_value * compared.tests) end as family_p_value,
    p_scale,
    z_scale,
    case when compared.z_scale is not null then least(1, compared.p_value_scale * compared.tests) end as family_p_value_scale
from compared
-- After the count: a selection must not make a p-value smaller.
where $role is null or role = $role
order by model, z nulls last, stack desc nulls first, layer, role_order(role), role, module nulls first, rows, cols, side desc;
