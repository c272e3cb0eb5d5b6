#!/bin/bash
# Which checkout: names, its directory below the root, its repository, its owner, its remote.

# Sets: dry_run, again, force, name, repository. Ends with `usage` if an argument is not valid.
read_arguments() {
    while [[ ${1:-} == --* ]]; do
        case $1 in
            --dry-run) dry_run=yes ;;
            --again) again=yes ;;
            --force) force=yes again=yes ;;
            --help) usage && exit 0 ;;
            *) finish usage "unknown option $1" "$(quote_command "$script" --help)" ;;
        esac
        shift
    done
    (($# == 1)) || finish usage "one repository name expected, $# given" "$(quote_command "$script" --help)"
    read_name "$1" "${GITOPS_REPOSITORY:-}"
}

# read_name ARGUMENT REPOSITORY: the argument is [owner/]name[@environment], and REPOSITORY is empty, the same name, or
# owner/name[@environment]. Sets: name, repository. Ends with `usage` if they are not valid or do not agree.
read_name() {
    local owner='' base rest given
    name=$1
    if [[ $name == */* ]]; then owner=${name%%/*} name=${name#*/}; fi
    base=${name%%@*}
    if ! is_name "$base" || { [[ $name == *@* ]] && ! is_name "${name#*@}"; } || { [[ $1 == */* ]] && ! is_name "$owner"; }; then
        name=''
        finish usage "'${1:0:120}' is not the name of a checkout: [owner/]name[@environment], each at most 100 of A-Z a-z 0-9 . _ -"
    fi
    if [[ $2 && $2 != "$base" && $2 != "$name" ]]; then
        rest=${2#*/}
        if [[ $2 != */* ]]; then rest=''; fi
        case ${rest,,} in
            "${base,,}" | "${name,,}") ;;
            *) finish usage "GITOPS_REPOSITORY must be owner/$base, not '${2:0:220}'" ;;
        esac
        given=${2%%/*}
        if ! is_name "$given" || [[ $owner && ${owner,,} != "${given,,}" ]]; then
            finish usage "GITOPS_REPOSITORY must be ${owner:-owner}/$base, not '${2:0:220}'"
        fi
        owner=$given base=${rest%%@*}
    fi
    if [[ $owner ]]; then repository=$owner/$base; fi
}

# Sets: announced_branch, announced_tag, announced_commit.
read_hints() {
    announced_commit=${GITOPS_AFTER:-}
    if [[ ${GITOPS_REF:-} == refs/heads/* ]]; then announced_branch=${GITOPS_REF#refs/heads/}; fi
    if [[ ${GITOPS_REF:-} == refs/tags/* ]]; then announced_tag=${GITOPS_REF#refs/tags/}; fi
}

# Return true for one part of a repository name that is safe as one part of a path.
is_name() {
    [[ $1 && $1 != *[!A-Za-z0-9._-]* && $1 != -* && $1 != . && $1 != .. && ${1,,} != .git ]] && ((${#1} <= 100))
}

# Change to the checkout: <root>/<owner>/<name>, else <root>/<name>. An exact match wins over one that differs in case.
# Needs: name, repository, GITOPS_ROOT. Sets: checkout, GITOPS_ROOT (absolute), the working directory.
enter_checkout() {
    local root=${GITOPS_ROOT:-/srv/gitops} found=()
    cd -P -- "$root" 2>/dev/null ||
        finish missing "the root '$root' cannot be entered" "$(as_root install -d -o "$(user_name)" "$root")"
    root=$PWD
    export GITOPS_ROOT=$root # absolute, for the deploy command and for a second start of this script
    find_checkouts
    ((${#found[@]} < 2)) ||
        finish usage "more than one checkout matches: ${found[*]}; set GITOPS_REPOSITORY=owner/$name"
    if ((${#found[@]} == 0)); then
        prepare_clone "$root" "${repository:+${repository%/*}/}$name"
    else
        checkout=$root/${found[0]}
    fi
    check_enterable
    cd -P -- "$checkout" 2>/dev/null || finish failed "'$checkout' was removed or renamed at this moment"
    checkout=$PWD
}

# Find the checkouts of a name below the working directory.
# Needs: name, repository. Sets: found (of the caller), relative paths without duplicates.
find_checkouts() {
    local owner='*' any_owner='*' any_case="[${name:0:1}]${name:1}" pattern place patterns
    # nocaseglob ignores the case of a path component only if the component is a pattern, hence [s]ite.
    if [[ $repository ]]; then
        owner=${repository%/*}
        any_owner="[${owner:0:1}]${owner:1}"
        patterns=("$owner/$name" "$any_owner/$any_case" "$name" "$any_case")
    else
        patterns=("$name" "$any_case" "*/$name" "*/$any_case")
    fi
    shopt -s nocaseglob
    for pattern in "${patterns[@]}"; do
        # shellcheck disable=SC2231 # a pattern without spaces, which must be expanded
        for place in $pattern/.gi[t] $pattern/.git:gitops-read[y]; do
            place=${place%/*}
            # A submodule or a link inside another checkout is not a checkout of its own.
            if [[ $place == */* && -e ${place%%/*}/.git ]] || [[ " ${found[*]} " == *" $place "* ]]; then continue; fi
            found+=("$place")
        done
        ((${#found[@]} == 0)) || break
    done
    shopt -u nocaseglob
}

# prepare_clone ROOT PLACE: create a directory for a clone if GITOPS_CLONE_URL allows one; else end with `missing`.
# Sets: checkout, created.
prepare_clone() {
    checkout=$1/$2
    local inside fix=''
    check_enterable
    inside=("$checkout"/*)
    if ((${#inside[@]})) && [[ ${inside[*]##*/} != .git:gitops-building ]]; then
        finish missing "'$checkout' contains files but no git repository; move it away, and make a clone in its place" \
            "$(as_owner mv -- "$checkout" "$checkout.before-gitops")"
    elif [[ ! ${GITOPS_CLONE_URL:-} || $dry_run ]]; then
        if [[ ${GITOPS_CLONE_URL:-} ]]; then fix=$(as_owner git clone "$GITOPS_CLONE_URL" "$checkout"); fi
        finish missing "there is no checkout at '$checkout'; if it was renamed, move its checkout there, else make a clone" \
            "$fix"
    elif [[ $2 == */* && -e ${checkout%/*}/.git ]]; then
        finish missing "'${checkout%/*}' is itself a checkout; move it away before a clone can be made inside"
    fi
    [[ -d $checkout ]] || created=yes
    mkdir -p -- "$checkout" ||
        finish denied "'$checkout' cannot be created by $(user_name)" \
            "$(as_root install -d -o "$(user_name)" "$checkout")"
}

# End with `denied` if this user cannot look into the directory, so that it is unknown whether it is a checkout.
# Needs: checkout.
check_enterable() {
    local parent=${checkout%/*}
    [[ ! -d $parent || -x $parent ]] ||
        finish denied "'$parent' cannot be entered by $(user_name)" "$(as_root chmod a+x -- "$parent")"
    [[ ! -d $checkout || ( -r $checkout && -x $checkout ) ]] ||
        finish denied "'$checkout' cannot be entered by $(user_name)" "$(give_to_user)"
}

# Name the repository explicitly, so that git never searches upwards and finds one that contains this directory.
# Needs: checkout. Sets: GIT_DIR, GIT_WORK_TREE, lock_directory, common_dir, state_refs, move_note.
find_repository() {
    export GIT_DIR=$checkout/.git GIT_WORK_TREE=$checkout
    if [[ -f .git ]]; then # a linked worktree, or a submodule
        read -r _ GIT_DIR <.git
        [[ $GIT_DIR == /* ]] || GIT_DIR=$checkout/$GIT_DIR
        [[ -d $GIT_DIR ]] ||
            finish missing "'$checkout/.git' points to '$GIT_DIR', which does not exist; if the main checkout was moved, repair \
its worktrees"
    fi
    lock_directory=$GIT_DIR
    [[ -e .git ]] || lock_directory=$checkout/.git:gitops-ready
    common_dir=$GIT_DIR state_refs=refs/gitops move_note=$GIT_DIR/gitops-unfinished
    if [[ -f $GIT_DIR/commondir ]]; then # linked worktrees share refs/gitops, and each has its own deploys
        read -r common_dir <"$GIT_DIR/commondir"
        [[ $common_dir == /* ]] || common_dir=$GIT_DIR/$common_dir
        state_refs=refs/worktree/gitops
    fi
}

# End with `denied` unless this user owns the checkout (or git's safe.directory permits it) and can write it.
# The owner decides which commands run here, because .git/config can name any command.
check_owner() {
    if [[ ! -O . || ( -e .git && ! -O .git ) ]]; then
        (unset GIT_DIR GIT_WORK_TREE && GIT_CEILING_DIRECTORIES=${PWD%/*} git rev-parse 2>/dev/null) ||
            finish denied "'$checkout' belongs to another user, not to $(user_name)" "$(give_to_user)"
    fi
    local place fix
    for place in "$checkout" "$GIT_DIR" "$common_dir/objects"; do
        [[ -e $place && ! -w $place ]] || continue
        fix=''
        if [[ ! -O $place ]] && ((EUID)); then fix=$(give_to_user); fi # else the file system is read-only
        finish denied "'$place' cannot be written by $(user_name), or is on a read-only file system" "$fix"
    done
}

# End with `mismatch` unless origin is the repository of this name. The last components of its URL are compared,
# without regard to case and ".git". Needs: config, name, repository. Sets: origin.
check_origin() {
    local wanted=${repository:-${name%%@*}} url=${config[remote.origin.url]:-}
    set_origin "$url"
    if [[ ! $url ]]; then
        # In a directory that is not a repository, `git config` succeeds without any local setting.
        git rev-parse --git-dir &>/dev/null || repair_or_fail 'git does not accept it as a repository'
        finish mismatch "'$checkout' has no remote named origin" \
            "${GITOPS_CLONE_URL:+$(git_fix remote add origin "$GITOPS_CLONE_URL")}"
    fi
    url_ends_in "$wanted" "$url" && return
    # url.<base>.insteadOf may replace the URL that is configured.
    url_ends_in "$wanted" "$(git ls-remote --get-url origin)" && return
    finish mismatch "'$checkout' is a checkout of $origin, not of $wanted; if it was renamed or transferred, set its new URL" \
        "$(url_fix "$url" "$wanted")"
}

# set_origin URL. Sets: origin.
set_origin() {
    origin=$1
    if [[ $1 =~ ^([^/]*://)[^/]*@(.*)$ ]]; then origin=${BASH_REMATCH[1]}${BASH_REMATCH[2]}; fi
}

url_ends_in() {
    local url=${2,,}
    while [[ $url == */ ]]; do url=${url%/}; done
    [[ /${url%.git} == *[/:]"${1,,}" ]]
}
