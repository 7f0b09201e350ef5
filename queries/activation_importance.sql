-- title: Importance of singular triplets for the output of a matrix, by decile
-- about: s_k^2 v_k^T C v_k is what triplet k adds to the mean square of the output of its matrix, with the covariance C of the
--   activations that enter it. importance_percent is the share of a decile in the whole, energy_percent its share in the sum of s_k^2,
--   which would be the same if all directions of the input were equal. ratio above 1: the inputs point along the decile more than
--   they point elsewhere. Decile 1 holds the smallest singular values. Shares are averaged over the matrices of a role and shape.
-- param: model MODEL = NULL | this model only
-- param: run VARCHAR = NULL | this run instead of the newest run of each matrix
-- param: role VARCHAR = NULL | this role only
-- param: centred BOOLEAN = TRUE | the covariance of the activations; if false, their second moments
-- column: model | name of the model
-- column: role | role of the matrix in its block
-- column: rows | output features
-- column: cols | input features
-- column: decile | tenth of the singular values: 1 = smallest, 10 = largest
-- column: matrices | number of matrices
-- column: vectors | number of singular triplets
-- column: energy_percent | share of the decile in the sum of s_k^2, percent
-- column: importance_percent | share of the decile in the mean square of the output, percent
-- column: ratio | importance_percent / energy_percent
-- show: model, role, shape = rows x cols, matrices, decile, energy_percent, importance_percent, ratio
with measured as (
    select
        *,
        (10 - (10 * k) // least(rows, cols))::integer as decile,
        singular_value ** 2 as energy
    from chosen_overlaps($model, $run, $role, $centred)
    where importance is not null
),

parts as (
    select
        model,
        run_id,
        tensor,
        role,
        expert,
        rows,
        cols,
        decile,
        count(*) as vectors,
        100 * sum(energy) / sum(sum(energy)) over of_matrix as energy_percent,
        100 * sum(importance) / sum(sum(importance)) over of_matrix as importance_percent
    from measured
    group by model, run_id, tensor, role, expert, rows, cols, decile
    window of_matrix as (partition by model, run_id, tensor, role, expert, rows, cols)
)

select
    model,
    role,
    rows,
    cols,
    decile,
    count(*)::integer as matrices,
    sum(vectors)::integer as vectors,
    avg(energy_percent) as energy_percent,
    avg(importance_percent) as importance_percent,
    avg(importance_percent) / nullif(avg(energy_percent), 0) as ratio
from parts
group by model, role, rows, cols, decile
order by model, role_order(role), role, rows, cols, decile;
