[assembly: System.Runtime.CompilerServices.InternalsVisibleTo("Layouts")]
