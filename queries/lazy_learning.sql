-- title: Accuracy of rich and lazy networks without some of their singular values
-- about: One line per recipe, network and set of removed singular values, averaged over the seeds (appendix A and Fig. 9 of arXiv
--   2410.17770v1). A rich network does without its small singular values, a lazy one does not. A recipe is all that decides the
--   numbers but the regime (alpha, frozen layers) and the seed: the pictures themselves, the sizes of the layers, epochs, batch,
--   rate and the removed shares. Networks of different recipes are never averaged.
-- param: runs VARCHAR = NULL | only these runs (run_id, separated by commas)
-- param: percent DOUBLE = NULL | only sets of this many per cent
-- param: recipe VARCHAR = NULL | only this recipe
-- column: dataset | what the networks learned
-- column: model | the network, its alpha and its frozen layers
-- column: recipe | 8 hexadecimal digits that name the recipe; plot lazy draws the newest, or the one that --run names
-- column: epochs | passes over the training pictures
-- column: batch | pictures a step
-- column: rate | learning rate
-- column: ordering | smallest: by number; mass: by share of the sum of the singular values; random: as many as smallest
-- column: percent | how much of the number (mass: of the sum) of each hidden matrix's singular values was removed
-- column: fraction | removed singular values as a fraction of all
-- column: networks | how many seeds
-- column: baseline | mean accuracy of the intact networks
-- column: value | mean accuracy without the set
-- column: delta | mean change
-- column: spread | standard deviation of the change over the seeds
-- column: finished_at | when the newest of these networks was
with runs as (
    select
        run_id,
        left(md5(json_merge_patch(method, '{"regime": null, "seed": null}')::varchar), 8) as recipe,
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
group by dataset, model, recipe, epochs, batch, rate, ordering, percent
order by dataset, model, max(max(finished_at)) over (partition by recipe) desc, recipe, ordering, percent;
