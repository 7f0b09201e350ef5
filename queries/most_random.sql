-- title: Most random matrices: candidates for pruning
-- about: The matrices of each model by the distance of their mean p-value from the 0.5 of random matrices, the nearest first;
--   among equals, by the distance of the spectrum from its Marchenko-Pastur law. A matrix with random vectors is not
--   necessarily useless: it can carry much information in a few singular values (see outlier_percent), so measure before
--   pruning. Values well above 0.5 are not random either: if some vectors share a mean, orthogonality keeps the others
--   away from it.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: max_outlier_percent DOUBLE = 100 | matrices with at most this share of singular values outside the bulk, percent
-- param: top INTEGER = 20 | number of matrices per model
-- column: model | name of the model
-- column: place | 1 = the most random matrix of the model
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
-- column: z | p - 0.5, in standard errors sqrt(1 / 24 / rank)
-- column: outlier_percent | singular values outside the Marchenko-Pastur bulk, percent
-- column: mp_ks | largest distance between the spectrum and its Marchenko-Pastur law
-- column: parameters_percent | entries of this matrix and of those above it, percent of the analyzed entries of the
--   model in that role (or in all roles): the share that pruning down to this row removes
-- show: model, place, stack, layer, role, module, head, expert, p, z, outlier_percent, mp_ks, parameters_percent
with measured as (
    select
        *,
        (u_p_mean + v_p_mean) / 2 as p,
        100 * (outliers_left + outliers_right) / least(rows, cols) as outlier_percent,
        rows::bigint * cols as entries,
        sum(entries) over (partition by model) as all_entries
    from matrices
    semi join chosen_scans($model, $revision) using (scan_id)
    where ($role is null or role = $role) and (head is not null) = $heads and role not in ('qk', 'ov')
),

placed as (
    select
        *,
        row_number() over nearest_first as place,
        100 * sum(entries) over nearest_first / all_entries as parameters_percent
    from measured
    where p is not null and ($max_outlier_percent >= 100 or outlier_percent <= $max_outlier_percent)
    window nearest_first as (
        partition by model
        order by abs(p - 0.5), mp_ks nulls last, layer, role_order(role), role, tensor, head, expert
        rows unbounded preceding
    )
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
    outlier_percent,
    mp_ks,
    parameters_percent
from placed
where placed.place <= $top
order by model, placed.place;
