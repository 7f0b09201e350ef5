-- title: Is a role the same in all blocks?
-- about: The profile of a matrix is its mean p-value by decile of the spectrum. One row per role, shape and side describes how
--   the profiles of the blocks agree. A role that is the same in all blocks has a correlation near 1, and a spread that is
--   near noise or small compared with range. Several matrices of one role in one block (such as experts) are averaged
--   first. Roles that occur in a single block, and matrices outside the blocks, are left out.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: role | role of the matrix in its block
-- column: module | submodule such as cross_attention or shared experts, if a role occurs twice in a block
-- column: rows | output features
-- column: cols | input features
-- column: side | v: right singular vectors (input side), u: left singular vectors (output side)
-- column: blocks | number of blocks with such a matrix
-- column: p | mean p-value, over the deciles of a block and then over blocks
-- column: p_std | sample standard deviation of the mean p-values of the blocks
-- column: lowest_p | smallest mean p-value of a block
-- column: lowest_layer | block of lowest_p
-- column: highest_p | largest mean p-value of a block
-- column: highest_layer | block of highest_p
-- column: range | largest minus smallest decile of the mean profile: the structure that blocks can agree on
-- column: spread | sample standard deviation between blocks of the mean p-value of a decile, root mean square over deciles
-- column: noise | spread for p-values of random vectors
-- column: correlation | correlation of the profile of a block with the mean profile of the others, mean over blocks; NULL if one
--   of the profiles is flat
-- show: model, stack, role, module, shape = rows x cols, blocks, side, p, spread, noise, range, correlation
with per_block as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        layer,
        10 - (10 * k) // least(rows, cols) as decile,
        avg(u_p) as u_p,
        count(u_p) as u_vectors,
        avg(v_p) as v_p,
        count(v_p) as v_vectors
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where layer is not null and ($role is null or role = $role) and (head is not null) = $heads and role not in ('qk', 'ov')
    group by all
),

profiles as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        side,
        layer,
        decile,
        case side when 'u' then u_p else v_p end as p,
        case side when 'u' then u_vectors else v_vectors end as vectors
    from per_block
    cross join (values ('v'), ('u')) as sides (side)
    where vectors > 0
),

beside_others as (
    select
        *,
        (sum(p) over of_decile - p) / nullif(count(*) over of_decile - 1, 0) as others
    from profiles
    window of_decile as (partition by model, stack, role, module, rows, cols, side, decile)
),

blocks as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        side,
        layer,
        avg(p) as p,
        case when stddev_pop(p) > 0 and stddev_pop(others) > 0 then corr(p, others) end as correlation
    from beside_others
    group by all
),

deciles as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        side,
        decile,
        avg(p) as p,
        var_samp(p) as variance,
        avg(1 / 12 / vectors) as noise
    from profiles
    group by all
),

over_blocks as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        side,
        count(*)::integer as blocks,
        avg(p) as p,
        stddev_samp(p) as p_std,
        min(p) as lowest_p,
        arg_min(layer, p) as lowest_layer,
        max(p) as highest_p,
        arg_max(layer, p) as highest_layer,
        avg(correlation) as correlation
    from blocks
    group by all
),

over_deciles as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        side,
        max(p) - min(p) as range,
        sqrt(avg(variance)) as spread,
        sqrt(avg(noise)) as noise
    from deciles
    group by all
)

select
    over_blocks.* exclude (correlation),
    over_deciles.range,
    over_deciles.spread,
    over_deciles.noise,
    over_blocks.correlation
from over_blocks
join over_deciles
    on over_deciles.model = over_blocks.model
    and over_deciles.stack is not distinct from over_blocks.stack
    and over_deciles.role = over_blocks.role
    and over_deciles.module is not distinct from over_blocks.module
    and over_deciles.rows = over_blocks.rows
    and over_deciles.cols = over_blocks.cols
    and over_deciles.side = over_blocks.side
where over_blocks.blocks > 1
order by
    over_blocks.model,
    over_blocks.stack desc nulls first,
    role_order(over_blocks.role),
    over_blocks.role,
    over_blocks.module nulls first,
    over_blocks.rows,
    over_blocks.cols,
    over_blocks.side desc;
