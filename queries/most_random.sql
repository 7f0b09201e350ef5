-- title: Matrices that look most like random ones: candidates for pruning
-- about: The matrices of each model whose mean p-value is nearest to the 0.5 of random matrices, nearest first, and of
--   equals the one whose spectrum is nearest to its Marchenko-Pastur law. What is as large as random is not without use:
--   see outlier_percent, for a matrix can carry much in a few singular values, and measure before pruning. Values well
--   above 0.5 are not random either: where some vectors carry a mean, orthogonality pushes the others the other way.
-- param: model VARCHAR = NULL | only this model
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- param: max_outlier_percent DOUBLE = 100 | only matrices with at most so many singular values outside the bulk, per cent
-- param: top INTEGER = 20 | so many matrices of each model
-- column: model | the model's name
-- column: place | 1 = the most random matrix of the model
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
-- column: z | p - 0.5, in standard errors sqrt(1 / 24 / rank)
-- column: outlier_percent | singular values outside the Marchenko-Pastur bulk, per cent
-- column: mp_ks | largest distance between the spectrum and its Marchenko-Pastur law
-- column: parameters_percent | entries of this matrix and those before it, per cent of the model's analysed matrices of
--   that role (or of all roles): what pruning down to this line would take away
with measured as (
    select
        *,
        (u_p_mean + v_p_mean) / 2 as p,
        100 * (outliers_left + outliers_right) / least(rows, cols) as outlier_percent,
        rows::bigint * cols as entries,
        sum(entries) over (partition by model) as all_entries
    from matrices
    semi join chosen_scans($model, $revision) using (scan_id)
    where ($role is null or role = $role) and (head is not null) = $heads
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
