-- title: Matrices that have learned the most
-- about: The matrices of each model whose singular vectors look least like random ones: smallest mean p-value first. Random
--   matrices have mean 0.5. z is that deviation in standard errors: as many vectors as the rank, on two sides, with
--   independent uniform p-values have standard error sqrt(1 / 24 / rank). Matrices of different size are ranked
--   by p, the effect, not by z, which grows with the size. outlier_percent and mp_ks tell what the singular values say.
-- param: model VARCHAR = NULL | only this model
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- param: top INTEGER = 20 | so many matrices of each model
-- column: model | the model's name
-- column: place | 1 = the least random matrix of the model
-- column: stack | encoder or decoder where the model has both
-- column: layer | index of the block; empty outside blocks
-- column: role | what the matrix does in its block
-- column: module | cross_attention and the like, where one role stands twice in a block
-- column: head | index of the head
-- column: expert | index of the expert
-- column: tensor | name of the weight in the checkpoint
-- column: rows | output features
-- column: cols | input features
-- column: p | mean of u_p and v_p
-- column: u_p | left vectors: mean p-value
-- column: v_p | right vectors: mean p-value
-- column: z | p - 0.5, in standard errors
-- column: outlier_percent | singular values outside the Marchenko-Pastur bulk, per cent
-- column: mp_ks | largest distance between the spectrum and its Marchenko-Pastur law
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
    where p is not null and ($role is null or role = $role) and (head is not null) = $heads
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
