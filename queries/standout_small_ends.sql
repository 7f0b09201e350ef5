-- title: Roles that differ from i.i.d. in their smallest singular values
-- about: Mean p-value of the singular vectors of decile 1, the smallest tenth of the singular values, over all matrices of a role,
--   where it is far from 0.5, which random vectors have. z = (p - 0.5) sqrt(12 vectors). p_scale is the mean under the scale null, which has
--   the row and column variances of the matrix: differs_by is direction if its z reaches the same limit, and otherwise scale, which
--   unequal rows and columns explain. `small_end` has the details by layer. The smallest p comes first.
-- param: night VARCHAR = NULL | models of the releases that were scanned in this night only
-- param: p DOUBLE = 0.4 | largest mean p-value that is listed
-- param: z DOUBLE = -6 | largest z that is listed
-- column: model | name of the model
-- column: revision | commit, first 12 characters
-- column: role | role of the matrices
-- column: side | v: right singular vectors (input side), u: left singular vectors (output side)
-- column: p | mean p-value of these vectors
-- column: z | difference from 0.5 in standard errors of random vectors
-- column: vectors | number of singular vectors in decile 1
-- column: matrices | number of matrices
-- column: p_scale | mean p-value of these vectors under the scale null; NULL if a scan has none
-- column: differs_by | direction or scale; NULL if a scan has no scale null
-- show: model, role, side, p, z, vectors, p_scale, differs_by
with measured as (
    select
        model,
        left(revision, 12) as revision,
        role,
        -- Every matrix has exactly one last triplet.
        count(*) filter (where k = least(rows, cols) - 1)::integer as matrices,
        avg(u_p) as u_p,
        count(u_p) as u_vectors,
        avg(v_p) as v_p,
        count(v_p) as v_vectors,
        case when count(u_p_scale) = count(u_p) then avg(u_p_scale) end as u_p_scale,
        case when count(v_p_scale) = count(v_p) then avg(v_p_scale) end as v_p_scale
    from vectors
    semi join night_scans($night) using (scan_id)
    where (10 * k) // least(rows, cols) = 9 and head is null
    group by all
),

sides as (
    select
        model,
        revision,
        role,
        side,
        matrices,
        case side when 'u' then u_p else v_p end as p,
        case side when 'u' then u_vectors else v_vectors end as vectors,
        case side when 'u' then u_p_scale else v_p_scale end as p_scale
    from measured
    cross join (values ('v'), ('u')) as both_sides (side)
)

select
    model,
    revision,
    role,
    side,
    p,
    (p - 0.5) * sqrt(12 * vectors) as z,
    vectors::integer as vectors,
    matrices,
    p_scale,
    case
        when (p_scale - 0.5) * sqrt(12 * vectors) <= $z then 'direction'
        when p_scale is not null then 'scale'
    end as differs_by
from sides
where p <= $p and (p - 0.5) * sqrt(12 * vectors) <= $z
order by p, model, role_order(role), role, side desc;
