package main

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/data_platform/model"
)

func dataCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use: "data", Short: "Datasets and their rows: what becomes a row, and what there is",
		Long: `A dataset says what the rows of a table are: which messages become rows, with which fields, types and bounds. It is a
document in YAML (docs/data.md). The dataset telemetry is there from the beginning.

  naru data latest telemetry          the newest row of each device
  naru data show telemetry --since 1h the rows of an hour
  naru data query "SELECT …"          SQL that only reads`,
	}
	c.AddCommand(dataQuery(o), dataLatest(o), dataShow(o), dataStats(o), dataExport(o), dataModels(o), dataCheck(o), dataApply(o), dataRemove(o), dataETL(o))
	return c
}

func dataModels(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "models [DATASET]", Short: "The datasets and pipelines in force, or one dataset with its versions", Args: cobra.MaximumNArgs(1),
		Long:    "Lists the datasets and pipelines in force; of one dataset, its document and who changed it. Exits with 2 when one cannot be used by the process that is asked.",
		Example: "  naru data models\n  naru data models telemetry",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				var e model.Entry
				if err := cl.get(c.Context(), "/api/v1/data/models/dataset/"+url.PathEscape(args[0]), nil, &e); err != nil {
					return err
				}
				return o.show(c.OutOrStdout(), e, func(p *printer) {
					p.line("%s", e.YAML)
					p.line("%s", strings.TrimRight(fmt.Sprintf("# version %d, by %s %s", e.Version, e.By, e.Why), " "))
					for _, h := range e.History {
						p.line("# before: version %d, by %s, %s %s", h.Version, h.By, h.At.Local().Format(time.DateTime), h.Why)
					}
				})
			}
			list := []model.Entry{}
			if err := cl.get(c.Context(), "/api/v1/data/models", nil, &list); err != nil {
				return err
			}
			faults := false
			err = o.show(c.OutOrStdout(), list, func(p *printer) {
				p.columns("No datasets; `naru data apply FILE` brings one in force.", "KIND", "NAME", "VERSION", "BY", "AT", "FILE")
				for _, e := range list {
					at := "built in"
					if !e.At.IsZero() {
						at = e.At.Local().Format(time.DateTime)
					}
					p.row(e.Kind, e.Name, fmt.Sprint(e.Version), e.By, at, e.File)
				}
				for _, e := range list {
					if e.Fault != "" {
						p.line("%s %s: %s", e.Kind, e.Name, e.Fault)
					}
				}
			})
			for _, e := range list {
				faults = faults || e.Fault != ""
			}
			return found(err, faults)
		},
	}
}

func dataCheck(o *options) *cobra.Command {
	var running bool
	c := &cobra.Command{
		Use: "check FILE", Short: "Whether a file of datasets and pipelines is right", Args: cobra.ExactArgs(1),
		Long:    "Reads a file as `naru data apply` does, and says what is wrong, with line and remedy; a pipeline's SQL is tried. With --running it asks the platform too: whether what is there may become that.",
		Example: "  naru data check engine.yaml\n  naru data check engine.yaml --running",
		RunE: func(c *cobra.Command, args []string) error {
			raw, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			docs, err := model.Parse(args[0], raw)
			if err != nil {
				return err
			}
			if running {
				cl, err := o.client()
				if err != nil {
					return err
				}
				if err := cl.do(c.Context(), http.MethodPut, "/api/v1/data/models", url.Values{"dry": {"1"}, "file": {args[0]}}, raw, nil); err != nil {
					return err
				}
			}
			untried, err := o.tryPipelines(c.Context(), args[0], raw, docs)
			if err != nil {
				return err
			}
			type line struct {
				Kind    string `json:"kind"`
				Name    string `json:"name"`
				Line    int    `json:"line"`
				Untried bool   `json:"untried,omitempty"`
			}
			list := []line{}
			for i := range docs {
				list = append(list, line{docs[i].Kind(), docs[i].Name(), docs[i].Line, docs[i].Pipeline != nil && untried[docs[i].Name()]})
			}
			return o.show(c.OutOrStdout(), list, func(p *printer) {
				for _, l := range list {
					if l.Untried {
						p.line("%s %s (line %d) is written right; its SQL was not tried, since its dataset is neither in the file nor could a platform be asked for it", l.Kind, l.Name, l.Line)
						continue
					}
					p.line("%s %s (line %d) is right", l.Kind, l.Name, l.Line)
				}
			})
		},
	}
	c.Flags().BoolVar(&running, "running", false, "also against what the running platform has")
	return c
}

func dataApply(o *options) *cobra.Command {
	var why string
	c := &cobra.Command{
		Use: "apply FILE", Short: "Bring the datasets and pipelines of a file in force", Args: cobra.ExactArgs(1),
		Long: `Brings each document of a file in force, in its order. A dataset that is there may grow: a field more that is not required, int to
double, wider bounds; what would not fit the rows that are there is refused, with what to do instead. So is a pipeline whose SQL fails with any row.`,
		Example: "  naru data apply engine.yaml --why \"oil pressure too\"",
		RunE: func(c *cobra.Command, args []string) error {
			raw, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			docs, err := model.Parse(args[0], raw)
			if err != nil {
				return err
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			if _, err := o.tryPipelines(c.Context(), args[0], raw, docs); err != nil {
				return fmt.Errorf("%w; nothing was changed", err)
			}
			list := []model.Entry{}
			if err := cl.do(c.Context(), http.MethodPut, "/api/v1/data/models", url.Values{"file": {args[0]}, "why": {why}, "by": {me()}}, raw, &list); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), list, func(p *printer) {
				for _, e := range list {
					p.line("%s %s is in force, version %d", e.Kind, e.Name, e.Version)
				}
			})
		},
	}
	c.Flags().StringVar(&why, "why", "", "why, for who looks later")
	return c
}

func dataRemove(o *options) *cobra.Command {
	var why string
	c := &cobra.Command{
		Use: "remove dataset|pipeline NAME", Short: "Take a dataset or a pipeline out of force", Args: cobra.ExactArgs(2),
		Long:      "Takes a dataset or a pipeline out of force: no message goes into it any more. Its versions stay, and a dataset begins again behind them.",
		Example:   "  naru data remove pipeline cleaned",
		ValidArgs: []string{"dataset", "pipeline"},
		RunE: func(c *cobra.Command, args []string) error {
			if kind := args[0]; kind != "dataset" && kind != "pipeline" {
				return fmt.Errorf("%q: want dataset or pipeline, and then its name", kind)
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			var e model.Entry
			if err := cl.do(c.Context(), http.MethodDelete, "/api/v1/data/models/"+url.PathEscape(args[0])+"/"+url.PathEscape(args[1]), url.Values{"why": {why}, "by": {me()}}, nil, &e); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), e, func(p *printer) {
				p.line("%s %s is out of force", e.Kind, e.Name)
				if e.Kind == "dataset" {
					p.line("Its rows stay; what still comes for it dies, dataset_unknown. Where `naru status` goes on naming data_platform.etl/%s: naru ledger forget data_platform.etl/%s", e.Name, e.Name)
				}
			})
		},
	}
	c.Flags().StringVar(&why, "why", "", "why, for who looks later")
	return c
}
