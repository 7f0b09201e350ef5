-- title: Accuracy of rich and lazy networks with some of their singular values removed
-- about: One row per recipe, network and set of removed singular values, averaged over the seeds (appendix A and Fig. 9 of
--   arXiv 2410.17770v1). A rich network does not need its small singular values; a lazy one does. A recipe contains
--   everything that determines the numbers except the regime (alpha, frozen layers) and the seed: the images and their
--   normalization, the layer sizes, epochs, batch size, learning rate and the removed shares. Networks of different recipes are never averaged.
-- param: runs VARCHAR = NULL | these runs only (run_id, separated by commas)
-- param: percent DOUBLE = NULL | sets of this percentage only
-- param: recipe VARCHAR = NULL | this recipe only
-- column: dataset | training data
-- column: model | the network, its alpha and its frozen layers
-- column: recipe | 8 hexadecimal digits that identify the recipe; `rmtscan plot lazy` draws the newest, or the one given as --run
-- column: normalize | pixels: each pixel minus its mean over the training images; images: each image to mean 0 and variance 1
-- column: epochs | number of passes over the training images
-- column: batch | images per step
-- column: rate | learning rate
-- column: ordering | smallest: by number; mass: by share of the sum of the singular values; random: the same number as smallest
-- column: percent | removed percentage of the number (mass: of the sum) of the singular values of each hidden matrix
-- column: fraction | removed singular values as a fraction of all
-- column: networks | number of seeds
-- column: baseline | mean accuracy of the intact networks
-- column: value | mean accuracy without the set
-- column: delta | mean change
-- column: spread | standard deviation of the change over the seeds
-- column: finished_at | when the newest of these networks finished
-- show: dataset, model, ordering, percent, networks, baseline, value, delta, spread
with runs as (
    select
        run_id,
        left(md5(json_merge_patch(method, '{"regime": null, "seed": null}')::varchar), 8) as recipe,
        coalesce(method ->> '$.normalize', 'pixels') as normalize,
        (method ->> '$.training.epochs')::integer as epochs,
        (method ->> '$.training.batch')::integer as batch,
        (method ->> '$.training.rate')::double as rate
    from experiments
    where kind = 'lazy_learning' and ($runs is null or list_contains(string_split($runs, ','), run_id))
),

points as (
    select
        a.*,
        runs.recipe,
        runs.normalize,
        runs.epochs,
        runs.batch,
        runs.rate,
        split_part(a.set, ':', 1) as ordering,
        try_cast(rtrim(split_part(a.set, ':', 2), '%') as double) as percent
    from ablations as a
    inner join runs on a.run_id = runs.run_id
)

select
    dataset,
    model,
    recipe,
    normalize,
    epochs,
    batch,
    rate,
    ordering,
    percent,
    avg(fraction) as fraction,
    count(*) as networks,
    avg(baseline) as baseline,
    avg(value) as value,
    avg(delta) as delta,
    stddev_samp(delta) as spread,
    max(finished_at) as finished_at
from points
where ($percent is null or percent = $percent) and ($recipe is null or recipe = $recipe)
group by dataset, model, recipe, normalize, epochs, batch, rate, ordering, percent
order by dataset, model, max(max(finished_at)) over (partition by recipe) desc, recipe, ordering, percent;
