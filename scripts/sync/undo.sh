#!/bin/bash
# Undo a move that stopped halfway: the note that a run writes before it moves, and the way back.

# write_note FROM TO [started]: a move has begun, or a deploy is unfinished ("started": its command has begun).
# The note is overwritten in place at constant length. If it were truncated first, a run that dies at that moment would
# lose a pending deploy.
# Needs: move_note.
write_note() {
    printf '%-135s\n' "$*" 2>/dev/null 1<>"$move_note" || finish failed "'$move_note' cannot be written"
}

clear_note() { : >"$move_note"; }

# Undo the move of a run that died, unless it had reached HEAD. In both cases its deploy is pending.
# Needs: move_note, head, dry_run. Sets: deploy_started.
undo_unfinished_move() {
    local from to
    [[ -s $move_note ]] || return 0
    read -r from to deploy_started <"$move_note"
    [[ $from != "$to" && ($head == "$from" || ! $head) ]] || return 0
    [[ ! $dry_run ]] || finish unchanged "would first undo the unfinished move to ${to:0:10}"
    put_back "$from" "$to" ||
        finish failed "a run died during the move to ${to:0:10}, which cannot be undone now; the next run tries again"
    write_note "$from" "$from" "$deploy_started"
}

# put_back FROM TO [live]: restore every file that differs between two commits. A file that the move can have written contains
# a prefix of the content in TO, and is removed. A file with other content is a person's later work: it is renamed. So
# is an empty file, unless this run has just made the move ("live"): git leaves one on a full disk.
# Sets: notes. Returns false if it could not finish (killed, disk full) and must be repeated.
put_back() {
    local from=$1 to=$2 live=${3:-} path aside changes i lost=()
    local -A excluded=()
    # git refuses if the index is not at either commit, as when the move died before it wrote the index.
    git read-tree -i -m "$to" "$from" 2>/dev/null || (($? <= 128)) || return
    mapfile -d '' -t changes < <(
        git diff --name-status -z --no-renames --ignore-submodules=all "$from" "$to"
        printf '%s\0' "$?"
    )
    [[ ${changes[-1]} == 0 ]] || return
    list_excluded
    for ((i = 0; i + 1 < ${#changes[@]}; i += 2)); do
        path=${changes[i + 1]}
        if is_behind_link "$path"; then
            continue # outside the tree
        elif [[ ! -e $path && ! -L $path && ${excluded[$path]:-} ]]; then
            continue # a sparse checkout does not contain it
        elif [[ ! -L $path && (-d $path || ! -e $path) ]]; then
            : # a missing file is restored below; a directory is removed with its last file
        elif [[ ${changes[i]} != D ]] && is_written_by_move "$path"; then
            rm -f -- "$path"
            [[ $path != */* ]] || rmdir -p --ignore-fail-on-non-empty -- "${path%/*}"
        elif [[ ${changes[i]} != A ]] && equals_committed "$path" "$from"; then
            continue
        else
            aside=$path.kept-$(timestamp)
            mv -- "$path" "$aside" || continue
            notes+="; '$path' was changed after a run died here, and is kept as '$aside'"
        fi
        [[ ${changes[i]} == A ]] || lost+=("$path")
    done
    # On a full disk, the first attempt may fail although the removed files left enough space.
    ((${#lost[@]} == 0)) || restore_lost || restore_lost --force || is_restored
}

# List the paths that a sparse checkout leaves out. Needs: config. Sets: excluded (of put_back).
list_excluded() {
    local line
    [[ ${config[core.sparsecheckout]:-} == true ]] || return 0
    while IFS= read -r -d '' line; do
        if [[ $line == 'S '* ]]; then excluded[${line#S }]=yes; fi
    done < <(git ls-files -t -z)
}

# Return true if the move can have written the file. Needs: to, live (of put_back).
is_written_by_move() {
    [[ -s $1 || -L $1 || $live || ! $(committed_content "$1" "$to" | head -c 1 | wc -c) == 1 ]] &&
        is_prefix_of_committed "$1" "$to"
}

# Return true if a parent of the path is a symbolic link.
is_behind_link() {
    local directory=$1
    while [[ $directory == */* ]]; do
        directory=${directory%/*}
        [[ ! -L $directory ]] || return 0
    done
    return 1
}

# Needs: lost (of put_back).
restore_lost() { printf '%s\0' "${lost[@]}" | git checkout-index --quiet "$@" -z --stdin; }

# Return true if only files are missing whose deletion a person has staged.
# Needs: lost and from (of put_back).
is_restored() {
    local path
    for path in "${lost[@]}"; do
        equals_committed "$path" "$from" || ! git ls-files --error-unmatch -- ":(top,literal)$path" &>/dev/null || return
    done
}

# Print the content of a file or link, here and as a checkout of a commit would write it.
file_content() { if [[ -L $1 ]]; then readlink --no-newline -- "$1"; else cat -- "$1"; fi; }
committed_content() { git cat-file --filters "$2:$1" 2>/dev/null; }

equals_committed() { [[ $(file_content "$1" | sha256sum) == "$(committed_content "$1" "$2" | sha256sum)" ]]; }

is_prefix_of_committed() {
    local length
    length=$(file_content "$1" | wc -c)
    [[ $(file_content "$1" | sha256sum) == "$(committed_content "$1" "$2" | head -c "$length" | sha256sum)" ]]
}
