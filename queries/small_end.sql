-- title: Which roles and layers carry information at the small end of the spectrum
-- about: Mean p-value of the singular vectors of decile 1, the smallest tenth of each matrix's singular values, beside
--   that of random matrices of the same shape. Random vectors have mean 0.5; a small p is information that a truncated
--   SVD would throw away. The most significant line of a model comes first.
--   z = (p - control_p) / standard_error. Independent uniform p-values have standard deviation sqrt(1 / 12), so
--   standard_error is sqrt(1 / 12 / vectors), and with a control, whose mean has noise as well,
--   sqrt(1 / 12 / vectors + 1 / 12 / vectors of the control). Without a control of that shape, control_p is empty and 0.5
--   takes its place. p_value is that of a normal z of either sign, correct to 2e-7 of itself; family_p_value is the same
--   for the best of all lines of the model (Bonferroni), so family_p_value < 0.01 can be believed whichever line one picks.
-- param: model VARCHAR = NULL | only this model
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- param: layers BOOLEAN = TRUE | one line per layer; if false, all layers of a role in one line
-- column: model | the model's name
-- column: stack | encoder or decoder where the model has both
-- column: layer | index of the block; empty outside blocks, and if all layers are in one line
-- column: role | what the matrix does in its block
-- column: module | cross_attention, shared experts and the like, where one role stands twice in a block
-- column: rows | output features
-- column: cols | input features
-- column: side | v: right vectors (input), u: left vectors (output)
-- column: matrices | matrices that decile 1 was taken from
-- column: vectors | singular vectors with a p-value in it
-- column: p | their mean p-value
-- column: control_p | mean p-value of decile 1 of the random controls of that shape
-- column: standard_error | of the difference, if the vectors are random
-- column: z | the difference in standard errors; negative = information
-- column: p_value | how often random matrices deviate as much, in either direction
-- column: family_p_value | how often the largest deviation of as many lines as the model has is as large
with control as (
    select
        rows,
        cols,
        avg(u_p) as u_p,
        count(u_p) as u_vectors,
        avg(v_p) as v_p,
        count(v_p) as v_vectors
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
        -- Every matrix has one last triplet.
        count(*) filter (where k = least(rows, cols) - 1) as matrices,
        avg(u_p) as u_p,
        count(u_p) as u_vectors,
        avg(v_p) as v_p,
        count(v_p) as v_vectors
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where
        (10 * k) // least(rows, cols) = 9
        and ($role is null or role = $role)
        and (head is not null) = $heads
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
        case side when 'u' then control.u_vectors else control.v_vectors end as control_vectors
    from measured
    cross join (values ('v'), ('u')) as both_sides (side)
    left join control using (rows, cols)
),

compared as (
    select
        *,
        sqrt(1 / 12 / nullif(vectors, 0) + coalesce(1 / 12 / nullif(control_vectors, 0), 0)) as standard_error,
        (p - coalesce(control_p, 0.5)) / standard_error as z,
        -- erfc(|z| / sqrt(2)), Chebyshev fit of Press et al., Numerical Recipes, section 6.2.
        1 / (1 + abs(z) / sqrt(8)) as t,
        t * exp(
            -(z * z) / 2 - 1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806
            + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))))
        ) as p_value
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
    -- Of a null, least(1, null) would make 1.
    case when compared.z is not null then least(1, compared.p_value) end as p_value,
    case when compared.z is not null then least(1, compared.p_value * count(compared.z) over (partition by model)) end as family_p_value
from compared
order by model, z nulls last, stack desc nulls first, layer, role_order(role), role, module nulls first, rows, cols, side desc;
