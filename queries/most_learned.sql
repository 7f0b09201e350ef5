-- title: Matrices that differ most from i.i.d.
-- about: The matrices of each model by increasing mean p-value, so that the least random one comes first. Random matrices have
--   a mean of 0.5. z is the deviation from 0.5 in standard errors, sqrt(1 / 24 / rank) for independent uniform p-values of
--   the vectors of both sides. The order is by p, the size of the effect, since z increases with the size of the matrix.
--   outlier_percent and mp_ks describe the singular values.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: top INTEGER = 20 | number of matrices per model
-- column: model | name of the model
-- column: place | 1 = the least random matrix of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block; NULL outside blocks
-- column: role | role of the matrix in its block
-- column: module | submodule such as cross_attention, if a role occurs twice in a block
-- column: head | index of the head
-- column: expert | index of the expert
-- column: tensor | name of the weight in the checkpoint
-- column: rows | output features
-- column: cols | input features
-- column: p | mean of u_p and v_p
-- column: u_p | left singular vectors: mean p-value
-- column: v_p | right singular vectors: mean p-value
-- column: z | p - 0.5, in standard errors
-- column: outlier_percent | singular values outside the Marchenko-Pastur bulk, percent
-- column: mp_ks | largest distance between the spectrum and its Marchenko-Pastur law
-- show: model, place, stack, layer, role, module, head, expert, p, u_p, v_p, z, outlier_percent
with measured as (
    select
        *,
        (u_p_mean + v_p_mean) / 2 as p,
        row_number() over (
            partition by model
            order by p, layer, role_order(role), role, tensor, head, expert
        ) as place
    from matrices
    semi join chosen_scans($model, $revision) using (scan_id)
    where p is not null and ($role is null or role = $role) and (head is not null) = $heads and role not in ('qk', 'ov')
)

select
    model,
    place::integer as place,
    stack,
    layer,
    role,
    module,
    head,
    expert,
    tensor,
    rows,
    cols,
    p,
    u_p_mean as u_p,
    v_p_mean as v_p,
    (p - 0.5) * sqrt(24 * nullif(rank, 0)) as z,
    100 * (outliers_left + outliers_right) / least(rows, cols) as outlier_percent,
    mp_ks
from measured
where measured.place <= $top
order by model, measured.place;
