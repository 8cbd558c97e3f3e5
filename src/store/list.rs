//! A page of Runners. What it costs is bounded: it goes along the index that has the fewest entries for what is asked,
//! newest first, and where hardly any of them fit the rest of it, it ends early and says where to go on.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params_from_iter};

use super::rows::{id_from_row, state_from_row};
use crate::{
    job::{Outcome, RunnerId, Spec, State},
    supervisor::{Filter, LOOKS, Listed},
};

/// Entries of an index are counted up to this: all of so few are looked at in a moment.
const FEW: usize = 1000;

/// Runners that may fit, and are found by an index: tables and conditions, all with the same values.
struct Candidates {
    parts: Vec<(&'static str, String)>,
    values: Vec<String>,
    /// The column that the index is in the order of.
    place: &'static str,
    /// What the rows of the Runners are joined by, where the index is of another table. In this order of the tables,
    /// whatever SQLite would guess.
    join: &'static str,
}

impl Candidates {
    fn new(table: &'static str, condition: &str, values: &[&String]) -> Self {
        let values = values.iter().map(|value| (*value).clone()).collect();
        Self { parts: vec![(table, condition.to_owned())], values, place: "r.n", join: "" }
    }

    /// The parts as one query, the newest first; SQLite merges them.
    fn query(&self, columns: &str, join: &str, filter: &Filter) -> (String, Vec<Box<dyn ToSql>>) {
        let place = self.place;
        let mut values: Vec<Box<dyn ToSql>> = Vec::new();
        values.extend(self.values.iter().map(|value| Box::new(value.clone()) as Box<dyn ToSql>));
        let mut before = String::new();
        if let Some(limit) = filter.before {
            values.push(Box::new(limit));
            before = format!(" AND {place} < ?{}", values.len());
        }
        let part = |(table, condition): &(&str, String)| {
            format!("SELECT {place}{columns} FROM {table}{join} WHERE {condition}{before}")
        };
        let parts: Vec<String> = self.parts.iter().map(part).collect();
        (format!("{} ORDER BY 1 DESC", parts.join(" UNION ALL ")), values)
    }

    /// How many there are, up to [`FEW`].
    fn count(&self, connection: &Connection, filter: &Filter) -> rusqlite::Result<usize> {
        let (query, values) = self.query("", "", filter);
        connection
            .prepare_cached(&format!("SELECT count(*) FROM ({query} LIMIT {FEW})"))?
            .query_row(params_from_iter(values), |row| row.get(0))
    }
}

/// `read` makes of a Runner that fits what is asked for, from its place, its id and where it is.
pub(super) fn list<T>(
    connection: &Connection,
    filter: &Filter,
    read: impl Fn(u64, RunnerId, State) -> rusqlite::Result<T>,
) -> rusqlite::Result<Listed<T>> {
    let mut listed = Listed { found: Vec::new(), next: None, looked: 0 };
    let Some(stages) = stages(filter) else { return Ok(listed) };
    let mut found = candidates(filter);
    found.extend(stages);
    let all = || Candidates::new("runners AS r", "true", &[]);
    let chosen = match found.len() {
        0 => all(),
        1 => found.remove(0),
        _ => {
            let counts: Vec<usize> =
                found.iter().map(|one| one.count(connection, filter)).collect::<rusqlite::Result<_>>()?;
            // The first of equals: what is asked for by a label or a name is rarer than a queue or a state.
            let fewest = (0..found.len()).min_by_key(|place| counts[*place]);
            fewest.map_or_else(all, |place| found.swap_remove(place))
        }
    };
    let (query, values) = chosen.query(", r.id, r.state, r.outcome, r.queue, r.name", chosen.join, filter);
    let mut statement = connection.prepare_cached(&query)?;
    let mut rows = statement.query(params_from_iter(values))?;
    while let Some(row) = rows.next()? {
        let n = row.get(0)?;
        listed.looked += 1;
        if fits(connection, filter, row, n)? {
            listed.found.push(read(n, id_from_row(row, 1)?, state_from_row(row, 2)?)?);
        }
        if listed.found.len() >= filter.limit || listed.looked >= LOOKS {
            listed.next = Some(n);
            break;
        }
    }
    Ok(listed)
}

/// By the words for where a Runner is; `None` where nothing can fit. A Runner that is not closed has no outcome.
fn stages(filter: &Filter) -> Option<Option<Candidates>> {
    if filter.states.is_empty() && filter.outcomes.is_empty() {
        return Some(None);
    }
    let closed = filter.states.is_empty() || filter.states.contains(&State::Closed);
    let outcomes = match filter.outcomes.is_empty() {
        true => Outcome::ALL,
        false => &filter.outcomes,
    };
    let mut parts = Vec::new();
    if filter.outcomes.is_empty() {
        // Both conditions: an index that is partial serves only where its own is said too.
        let open = |state: &&State| **state != State::Closed;
        parts.extend(State::ALL.iter().filter(open).filter(|state| filter.states.contains(state)).map(
            |state| {
                (
                    "runners AS r INDEXED BY runners_open",
                    format!("r.state <> 'closed' AND r.state = '{state}'"),
                )
            },
        ));
    }
    if closed {
        parts.extend(Outcome::ALL.iter().filter(|outcome| outcomes.contains(outcome)).map(|outcome| {
            ("runners AS r INDEXED BY runners_by_outcome", format!("r.outcome = '{outcome}'"))
        }));
    }
    (!parts.is_empty()).then_some(Some(Candidates { parts, values: Vec::new(), place: "r.n", join: "" }))
}

/// By what else is asked, the rarest kind of thing first.
fn candidates(filter: &Filter) -> Vec<Candidates> {
    let mut found = Vec::new();
    for (key, value) in &filter.labels {
        let join = " CROSS JOIN runners AS r ON r.n = l.n";
        let labelled = Candidates::new("labels AS l", "l.key = ?1 AND l.value = ?2", &[key, value]);
        found.push(Candidates { place: "l.n", join, ..labelled });
    }
    if let Some(name) = &filter.name {
        found.push(Candidates::new("runners AS r INDEXED BY runners_by_name", "r.name = ?1", &[name]));
    }
    if let Some(queue) = &filter.queue
        && queue != Spec::DEFAULT_QUEUE
    {
        let condition = "r.queue <> 'default' AND r.queue = ?1";
        found.push(Candidates::new("runners AS r INDEXED BY runners_by_queue", condition, &[queue]));
    }
    found
}

/// Whether a row is of a Runner that is asked for.
fn fits(connection: &Connection, filter: &Filter, row: &Row<'_>, n: u64) -> rusqlite::Result<bool> {
    let state = row.get_ref(2)?.as_str()?;
    let outcome = row.get_ref(3)?.as_str_or_null()?;
    if !filter.states.is_empty() && !filter.states.iter().any(|known| known.as_str() == state)
        || !filter.outcomes.is_empty() && !filter.outcomes.iter().any(|known| Some(known.as_str()) == outcome)
    {
        return Ok(false);
    }
    for (column, asked) in [(4, &filter.queue), (5, &filter.name)] {
        if asked.is_some() && row.get_ref(column)?.as_str_or_null()? != asked.as_deref() {
            return Ok(false);
        }
    }
    for (key, value) in &filter.labels {
        let labelled = connection
            .prepare_cached("SELECT 1 FROM labels WHERE key = ?1 AND value = ?2 AND n = ?3")?
            .query_row((key, value, n), |_| Ok(()))
            .optional()?;
        if labelled.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}
